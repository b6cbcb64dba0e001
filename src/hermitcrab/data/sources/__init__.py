"""Kinds of sources beyond rows in text files: one file a kind, each giving a `readers.Table`."""
