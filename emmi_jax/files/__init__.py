"""Files in and out: atomic writes, locks, checksums, JSON, npy, npz, zarr, PyTorch tensors; nothing about physics."""
