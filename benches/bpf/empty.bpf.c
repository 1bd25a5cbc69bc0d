// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/* A program that does nothing. What it costs is its hook's: see benches/host/cost.py, which names the section. */
char LICENSE[] __attribute__((section("license"), used)) = "Dual MIT/GPL";

__attribute__((section(SECTION), used)) int empty(void *ctx)
{
	return 0;
}
