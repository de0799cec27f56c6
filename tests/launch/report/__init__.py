"""Tests of `outmodal report`."""
