//! Polars frames to Arrow record batches and back, without copying where the layouts agree.
