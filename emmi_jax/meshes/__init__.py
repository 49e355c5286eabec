"""Mesh files in and out, normals and areas, forces."""
