"""`report.html` of `biomedclip evaluate --report`: parts that all pages share, and one file for each kind of page."""
