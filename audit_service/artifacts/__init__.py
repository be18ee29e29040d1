"""What a service is made of on disk: training data, model files, Bento models."""
