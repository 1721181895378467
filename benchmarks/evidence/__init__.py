"""Methods of the catalogue on problems of several kinds: ``make evidence``."""
