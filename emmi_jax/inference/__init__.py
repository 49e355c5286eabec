"""A trained model at work: anchor caches, streams of queries, cases in physical units, meshes, intervals, exports."""
