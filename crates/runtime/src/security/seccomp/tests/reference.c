/*
 * Makes a filter with libseccomp, as runc and crun do, and prints it: what our own is compared with.
 *
 * Reads lines: `init ACTION`, `arch NAME` (the first one is the native one), `optimize`,
 * `rule ACTION CALL COUNT {ARGUMENT OPERATOR VALUE VALUE}`, `number ARCH CALL`.
 * Prints, for each rule that is not taken, `refused INDEX`; for each `number` a `number VALUE`; and last, after an
 * `init`, `bpf HEX`.
 */
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

static int rule(scmp_filter_ctx filter)
{
	char name[64];
	unsigned action, count;
	struct scmp_arg_cmp conditions[6];
	if (scanf("%u %63s %u", &action, name, &count) != 3 || count > 6)
		die("rule", 0);
	for (unsigned i = 0; i < count; i++) {
		unsigned argument, operator;
		uint64_t a, b;
		if (scanf("%u %u %lu %lu", &argument, &operator, &a, &b) != 4)
			die("condition", 0);
		conditions[i] = (struct scmp_arg_cmp){ argument, operator, a, b };
	}
	int number = seccomp_syscall_resolve_name(name);
	if (number == __NR_SCMP_ERROR)
		return 0;
	return seccomp_rule_add_array(filter, action, number, count, conditions);
}

static void print(scmp_filter_ctx filter)
{
	FILE *file = tmpfile();
	if (file == NULL)
		die("tmpfile", 1);
	int error = seccomp_export_bpf(filter, fileno(file));
	if (error)
		die("export", error);
	lseek(fileno(file), 0, SEEK_SET);
	unsigned char byte;
	printf("bpf ");
	while (read(fileno(file), &byte, 1) == 1)
		printf("%02x", byte);
	printf("\n");
}

int main(void)
{
	char word[64], name[64];
	scmp_filter_ctx filter = NULL;
	unsigned action, rules = 0, architectures = 0;
	/* Whatever this kernel can do: nothing is installed. */
	seccomp_api_set(6);
	while (scanf("%63s", word) == 1) {
		if (!strcmp(word, "init")) {
			if (scanf("%u", &action) != 1 || (filter = seccomp_init(action)) == NULL)
				die("init", 0);
		} else if (!strcmp(word, "arch")) {
			if (scanf("%63s", name) != 1)
				die("arch", 0);
			uint32_t token = seccomp_arch_resolve_name(name);
			if (architectures++ == 0 && token != seccomp_arch_native())
				seccomp_arch_remove(filter, seccomp_arch_native());
			int error = seccomp_arch_add(filter, token);
			if (error && error != -17 /* EEXIST */)
				die(name, error);
		} else if (!strcmp(word, "optimize")) {
			seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
		} else if (!strcmp(word, "rule")) {
			if (rule(filter))
				printf("refused %u\n", rules);
			rules++;
		} else if (!strcmp(word, "number")) {
			if (scanf("%63s %63s", word, name) != 2)
				die("number", 0);
			printf("number %d\n", seccomp_syscall_resolve_name_arch(seccomp_arch_resolve_name(word), name));
		} else {
			die(word, 0);
		}
	}
	if (filter != NULL)
		print(filter);
	return 0;
}
