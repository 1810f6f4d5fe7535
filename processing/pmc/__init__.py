"""From PubMed Central's bucket to shards of figure-caption pairs."""
