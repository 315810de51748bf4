//! What the relay decides: placement, scaling, recovery. Pure.
