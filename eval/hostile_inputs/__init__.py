"""Hypothesis strategies of files that somebody made to do harm, a module for each kind of file."""
