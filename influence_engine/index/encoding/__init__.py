"""From a gradient to the vector that is searched, quickly on either device."""
