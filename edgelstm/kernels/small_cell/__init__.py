"""A whole LSTM or GRU cell in one launch."""
