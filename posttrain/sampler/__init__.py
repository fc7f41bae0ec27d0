"""Who answers besides the policy itself: servers, engines that take its weights, and what keeps them in step."""
