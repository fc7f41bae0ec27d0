"""The geometry kernel: programs become solids, and solids are compared, in processes behind the sandbox's walls.

syntax    which programs are run at all: an allow-list of Python's syntax and CadQuery's methods
worker    what runs inside: CadQuery, which this process never imports
pool      workers side by side, each program within a deadline, equal ones compared once
"""
