"""Reports: what a fold did, as data and for people."""
