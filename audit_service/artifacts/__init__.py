"""What a service is made of on disk: recorded runs, model files, Bento models."""
