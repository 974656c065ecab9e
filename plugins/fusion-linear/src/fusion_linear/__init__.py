"""Linear combinations of models for fusion-core, and stages that scale task vectors."""
