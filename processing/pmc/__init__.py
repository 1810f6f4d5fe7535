"""Build shards of figure-caption pairs from PubMed Central's bucket."""
