"""MMedExpert (section 3): the data factory, from raw clinical cases to reviewed, stratified reasoning data."""
