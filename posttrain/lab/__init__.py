"""Experiments: claims, arms, trials and the tiny worlds that they run in. No part of the library imports it."""
