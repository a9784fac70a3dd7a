"""Mixture of Experts: each token uses a few of many MLPs, chosen by a learned router."""
