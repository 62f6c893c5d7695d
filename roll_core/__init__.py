"""ROLL: the asynchronous trainer. It knows of the platform only ``rock.sdk`` and ``rock.domain``."""
