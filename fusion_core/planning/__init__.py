"""From a recipe to a plan: validate it and create its components, but compute nothing."""
