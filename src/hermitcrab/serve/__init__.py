"""Packages that answer: `opening` a model checked against its signature, an `engine` behind one small interface, an `api` before it."""
