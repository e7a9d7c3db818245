//! Messages no decent front end sends.
