"""What a trained model is used for outside training."""
