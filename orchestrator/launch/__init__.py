"""Everything that imports Ray on the training side."""
