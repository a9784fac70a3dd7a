"""The plain decoder, from "Attention Is All You Need" to today's control."""
