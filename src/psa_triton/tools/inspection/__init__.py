"""Levels and importance of single attention calls, of a generation or from saved q, k, v: pictures and numbers."""
