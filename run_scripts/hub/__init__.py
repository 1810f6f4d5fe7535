"""What publishing to the Hub needs: checks, uploads, the files of a model folder."""
