"""What the diffusion models share: the backbone, noise schedules, samplers and bound estimators."""
