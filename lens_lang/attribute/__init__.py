"""What single neurons contribute: to the residual stream, to an answer, by gradients."""
