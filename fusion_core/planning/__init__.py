"""From a recipe to a plan: everything validated and made, nothing computed."""
