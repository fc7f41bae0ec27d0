"""Who answers besides the policy itself: servers, engines that take the policy's weights, and what keeps them in step."""
