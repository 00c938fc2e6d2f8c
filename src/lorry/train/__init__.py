"""Training that survives: runs, checkpoints, data. Works in any script; the platform brings its own store."""
