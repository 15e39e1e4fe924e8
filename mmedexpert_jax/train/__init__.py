"""What every trainer shares, below the stages of the paper."""
