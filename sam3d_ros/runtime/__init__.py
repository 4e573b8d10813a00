"""Neural network engines behind one protocol; knows nothing of objects."""
