"""The document on a whole paper: several sweeps, the paper's published figures beside them, its referees answered."""
