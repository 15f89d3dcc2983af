"""Asking servers, and writing down when each request left and came back."""
