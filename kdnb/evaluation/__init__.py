"""What features and models are worth: linear probe, k-NN, quality; whole runs, and sampling regimes compared."""
