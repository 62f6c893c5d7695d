"""The platform's only door: HTTP on the loopback. Routes translate, :mod:`rock.control` decides."""
