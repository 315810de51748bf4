//! Moves frames: ZeroMQ with CURVE.
