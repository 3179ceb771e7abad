"""Work on many machines; needs the extra `ray`."""
