//! Memory tables, and the rings on them.
