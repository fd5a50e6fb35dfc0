//! What to do after any crash. E: placeholder
