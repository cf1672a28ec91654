"""Image models: any of timm as teacher or student, with their weights, normalisation and folders."""
