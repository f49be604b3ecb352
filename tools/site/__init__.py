"""The site: what is written in the repository, as pages that open from a folder."""
