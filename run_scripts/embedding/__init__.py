"""Embed many images and texts, and keep the embeddings in Parquet files."""
