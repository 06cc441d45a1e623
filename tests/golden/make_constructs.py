#!/usr/bin/env python3
"""Small pieces of Jinja and what transformers' environment makes of them, errors included.

usage: make_constructs.py > tests/golden/templates/constructs.json

The environment is transformers' own (utils/chat_template_utils.py). Each entry: the template; the text
it renders, or the error: "raised" with the message of raise_exception, "undefined" with jinja2's
message, or "error" for what else fails."""
import itertools
import json
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import _cached_compile_jinja_template

VARS = {
    "i": 7, "n": -3, "z": 0, "f": 2.5, "b": True, "none_": None, "s": "Hello World", "e": "", "sp": " \t a b \n ",
    "u": "naïve ÀÉ ß 日本 😀 ΑΣ", "l": [3, 1, 2], "ls": ["b", "A", "c"], "d": {"a": 1, "b": [1, {"x": "y"}], "c": None},
    "m": [{"role": "user", "content": "hi", "n": 2}, {"role": "assistant", "content": "yo", "n": 1},
          {"role": "user", "content": "x"}], "big": 9007199254740993, "html": "<a href=\"x\">'&</a>",
    "nested": [[1, 2], [3, [4, 5]]], "tools": [{"name": "f", "parameters": {"type": "object", "é": "ü\n\"\\"}}],
}
VALUES = ["i", "n", "f", "b", "none_", "s", "e", "sp", "u", "l", "ls", "d", "m", "missing", "()", "(1,)", "[]", "{}", "range(3)",
          "d.items()", "d.keys()", "1.0", "1e20", "-0.0", "0.1", "1e-7", "123456789012345680.0", "'it\\'s'", "'a\"b'"]
FILTERS = ["trim", "length", "count", "upper", "lower", "title", "capitalize", "string", "list", "first", "last", "reverse|list",
           "join", "join(', ')", "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)", "default('D')",
           "default('D', true)", "d", "int", "float", "int(5)", "abs", "round", "sort", "sort(reverse=true)", "unique|list", "sum",
           "min", "max", "safe", "escape", "items|list", "dictsort", "indent", "replace('l', 'L')", "batch(2)|list",
           "slice(2)|list", "map('string')|list", "select|list", "reject|list", "center(20)", "truncate(5)", "map('upper')|join"]
TESTS = ["defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean",
         "true", "false", "odd", "even", "lower", "upper", "callable", "escaped", "in [1, 2]", "eq 7", "ne 7", "divisibleby 3",
         "gt 1", "sameas none"]
PAIRS = ["i", "n", "z", "f", "b", "none_", "s", "e", "l", "d", "missing", "(1, 2)", "'%s'"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
METHODS = [
    "s.upper()", "s.lower()", "s.title()", "s.swap()", "u.upper()", "u.lower()", "u.title()", "u.capitalize()", "sp.strip()",
    "sp.lstrip()", "sp.rstrip()", "s.strip('Hd')", "s.split()", "s.split('o')", "s.split('o', 1)", "s.rsplit('o', 1)",
    "s.rsplit('o')", "sp.split()", "u.split(' ')", "'a,b,,c'.split(',')", "'a  b c '.split(None, 1)", "'a  b c '.rsplit(None, 1)",
    "s.startswith('He')", "s.startswith(('x', 'H'))", "s.endswith('ld')", "s.startswith('l', 2)", "s.endswith('o', 0, 5)",
    "s.replace('l', 'L', 2)", "s.replace('', '-')", "e.replace('', '-')", "s.find('o')", "s.rfind('o')", "s.find('zz')",
    "u.find('日')", "s.index('zz')", "s.index('W')", "s.count('l')", "s.count('')", "','.join(ls)", "','.join(l)", "e.join('abc')",
    "'{} {}'.format(1, 'x')", "'{1} {0}'.format(1, 'x')", "'{a}'.format(a=3)", "'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')",
    "'{:05d} {:.2f} {:x} {:,}'.format(42, 3.14159, 255, 1234567)", "'{!r}'.format('x')", "'{{}}'.format()", "'{}'.format()",
    "s.splitlines()", "'a\\nb\\r\\nc'.splitlines()", "'a\\nb\\n'.splitlines(true)", "s.partition(' ')", "s.rpartition('o')",
    "s.partition('zz')", "s.removeprefix('Hello')", "s.removesuffix('ld')", "s.isupper()", "'ABC'.isupper()", "'abc1'.islower()",
    "'12'.isdigit()", "'a1'.isalnum()", "'ab'.isalpha()", "' '.isspace()", "'é'.isascii()", "'7'.zfill(3)", "'-7'.zfill(4)",
    "'a'.ljust(3, '.')", "'a'.rjust(3)", "'a'.center(4, '*')", "'ab'.center(5)", "d.get('a')", "d.get('q')", "d.get('q', 5)",
    "d.items()|list", "d.keys()|list", "d.values()|list", "d.copy()", "d.pop('a')", "d.update({})", "d.append", "l.append(1)",
    "l.count(1)", "l.index(2)", "l.index(9)", "l.pop()", "l.sort()", "s.__class__", "s._x", "d.__class__.__mro__", "i.real.x",
    "d.a", "d['a']", "d.b[1].x", "d.q", "d.q.r", "d['q']['r']", "missing.x", "missing['x']", "missing()", "s()", "i.x", "none_.x",
    "none_['x']", "l.x", "l['x']", "l[0]", "l[-1]", "l[9]", "l['0']", "s[0]", "s[-1]", "u[6]", "u[99]", "d[0]", "(1,2)[1]", "l.0",
    "range(5)[2]", "range(5)[-1]", "d.items", "m[0].items()|list", "m[0]['role']", "m[0].role", "m[-1].n", "m[5].n", "d[l]",
    "s.foo", "s.foo()", "b.x", "f.is_", "d.keys()[0]", "d.items()|first", "dict(a=1, b=2)", "dict([('a', 1)])", "dict(d, z=1)",
    "namespace(a=1).a", "namespace(a=1).b", "namespace(_a=1)", "range(3)|list", "range(1, 10, 3)|list", "range(5, 0, -2)|list",
    "range(0)|list", "range(100001)|length", "range(1, 2, 0)", "raise_exception('no: ' ~ i)", "raise_exception(missing)",
    "strftime_now is defined", "strftime_now('')", "strftime_now is callable", "lipsum is defined", "tojson is defined",
]
SLICES = ["[:]", "[1:]", "[:2]", "[1:3]", "[::-1]", "[::2]", "[-2:]", "[:-1]", "[5:1]", "[5:1:-1]", "[-100:100]", "[1::-1]",
          "[::0]", "['a':]", "[i:]", "[:n]", "[none:2]", "[-1:-4:-2]"]
EXPRESSIONS = [
    "1 + 2 * 3", "(1 + 2) * 3", "-1 ** 2", "2 ** -1", "2 ** 3 ** 2", "7 // 2", "-7 // 2", "-7 % 3", "7 % -3", "7 / 2", "6 / 2",
    "7.5 // 2", "-7.5 % 2", "1 / 0", "1 % 0", "1.0 / 0", "1 < 2 < 3", "1 < 3 < 2", "1 == 1.0", "true == 1", "'a' < 'b'", "[1] < [1, 2]",
    "(1, 'a') == (1, 'a')", "{'a': 1} == {'a': 1}", "not 1", "not not 1", "not 1 == 2", "1 if true", "1 if false", "(1 if false).x",
    "1 if false else 2", "1 if 0 else 2 if 0 else 3", "'a' 'b' \"c\"", "'a\\tb\\n\\\\\\x41\\u00e9\\'\\q'", "'\\101'", "1_000 + 0x1F + 0b11 + 0o17",
    "1.5e3", "1e3", "1E-2", "[1, 2, ]", "(1, 2, )", "{'a': 1, }", "{'a': 1, 'a': 2}", "{1: 2, true: 3}", "{(1, 2): 3}", "{[1]: 2}",
    "[1, [2, (3,)], {'k': none}, 'q', 1.0, true, missing]", "'a' in 'abc'", "1 in 'abc'", "'x' not in d", "'a' in d", "none in l",
    "1 in none_", "1 in 5", "'x' in missing", "missing == missing2", "missing == none", "missing is none", "missing or 'x'",
    "missing and 'x'", "not missing", "missing + 1", "missing ~ 1", "-missing", "missing < 1", "1 ~ 2 ~ none", "none ~ ''", "'%s-%d' % ('a', 3)",
    "'%5.1f|%-5s|%05d|%x|%%' % (3.14159, 'a', 42, 255)", "'%(a)s' % {'a': 1}", "'%s' % 'x'", "'%s' % l", "'%s' % (l,)", "'%d' % 'x'",
    "'%s %s' % ('x',)", "'x' % 1", "'%r' % 'x'", "'%+d % d' % (3, 4)", "'ab' * 3", "3 * 'ab'", "[1] * 2", "'a' * -1", "(1,) + (2,)",
    "[1] + [2]", "[1] + (2,)", "'a' + 1", "1 + 'a'", "none + 1", "big + 1", "9223372036854775807", "true + true", "true is number",
    "1.0 is integer", "1 is integer", "true is integer", "l is sequence", "d is sequence", "d.keys() is sequence", "m|map(attribute='role')|list",
    "m|map(attribute='n')|list", "m|map(attribute='n', default=0)|list", "m|map(attribute='n', default=9)|sum", "m|selectattr('n')|list|length",
    "m|selectattr('role', 'equalto', 'user')|list", "m|selectattr('role', '==', 'user')|map(attribute='content')|join('+')",
    "m|rejectattr('role', 'eq', 'user')|list", "m|selectattr('n', 'defined')|list|length", "m|selectattr('content', 'in', ['hi'])|list",
    "l|select('odd')|list", "l|reject('gt', 1)|list", "l|select('nosuch')|list", "l|map('nosuch')|list", "l|map|list", "l|map('default', 1)|list",
    "ls|map('upper')|join(',')", "m|map(attribute='content')", "l|map('string')|length", "ls|sort", "ls|sort(case_sensitive=true)",
    "m|sort(attribute='role')|map(attribute='content')|join", "m|sort(attribute='role,content')|map(attribute='content')|join",
    "m|sort(attribute='n')|list", "['a', 1]|sort", "d|dictsort(by='value')", "{'b': 2, 'a': 1, 'C': 3}|dictsort",
    "{'b': 2, 'a': 1, 'C': 3}|dictsort(true)", "{'b': 2, 'a': 1}|dictsort(false, 'value')", "{'b': 2, 'a': 1}|dictsort(reverse=true)",
    "[1, 1, 2, 'a', 'A']|unique|list", "['a', 'A']|unique(case_sensitive=true)|list", "nested|map('first')|list", "nested|map('last')|list",
    "nested|tojson", "nested|tojson(indent=1)", "d|tojson(indent='\\t')", "tools|tojson", "tools|tojson(indent=4)", "tools|tojson(separators=(',', ':'))",
    "tools|tojson(false, 2)", "[]|tojson(indent=2)", "{}|tojson(indent=2)", "{1: 2, none: 3, true: 4, 1.5: 6}|tojson", "{(1,): 2}|tojson",
    "'\\u2028\\x7f\\x00'|tojson", "u|tojson(ensure_ascii=true)", "missing|tojson", "l|map('string')|tojson", "f|tojson", "1e100|tojson",
    "'a\\nb\\n\\nc'|indent", "'a\\nb\\n\\nc'|indent(2, true)", "'a\\nb\\n\\nc'|indent('>>', blank=true)", "'a\\n'|indent", "e|indent", "none_|indent",
    "'42'|int", "'42.9'|int", "' 42 '|int", "'x'|int", "'x'|int(-1)", "'0x1f'|int(base=16)", "'1_000'|int", "''|int", "none_|int", "3.99|int",
    "-3.99|int", "'3.5'|float", "'x'|float", "'x'|float(1.5)", "'1e3'|float", "'inf'|float", "'nan'|float", "2.5|round", "3.5|round",
    "2.675|round(2)", "2.5|round(method='ceil')", "2.5|round(method='floor')", "42.55|round(1, 'floor')", "7|round", "1.1|round(3, 'ceil')",
    "'a-b c(d [e'|title", "'o\\'neil'|title", "'ǆ'|title", "'ß'|upper", "'ŉ'|capitalize", "'İ'|lower", "'ΑΣ ΑΣΑ Σ'|lower", "'ﬁne'|title",
    "'abc def ghi'|truncate(8)", "'abc def ghi'|truncate(8, leeway=0)", "'abc def ghi'|truncate(8, true, leeway=0)",
    "'abc def ghi'|truncate(8, false, '', 0)", "html|e", "html|safe", "'<'|safe + '<'", "'<' + '<'|safe", "html|e ~ '<'", "'<'|safe|upper + '&'",
    "[html|safe]", "'%s!'|format('x')", "'%(a)s'|format(a=1)", "'a'|replace('a', missing)", "5|replace(5, 6)", "s|replace('l', 'L', 1)",
    "s|first", "s|last", "s|list|length", "s|reverse", "d|first", "d|list", "d|length", "d.items()|length", "i|length", "none_|length",
    "missing|length", "missing|join", "missing|first", "missing|last", "missing|list", "missing|default('x')|upper", "missing.x|default('y')",
    "d.q|default('y')", "none_|default('y')", "none_|default('y', true)", "e|default('y')", "l|join(missing)", "m|join(',', 'role')",
    "m|join(',', attribute='n')", "[1, none, true, 1.5]|join('-')", "i is eq 7", "i is not none", "i is not defined", "i is defined and i > 3",
    "i is divisibleby(7)", "i is odd is true", "'a' is in 'abc'", "i is in([7])", "not i is odd", "'upper' is filter", "'nosuch' is filter",
    "'odd' is test", "i is nosuch", "i|nosuch", "i|upper('x')", "s|trim('Hd')", "s|trim(chars='Hd')", "s|trim(nope=1)", "loop", "loop.index",
    "self", "caller", "varargs", "[1, 2, 3][1:]|first", "{'a': {'b': 1}}.a.b", "('a', 'b')|join", "(1, 2)[0]", "1, 2", "s.split(' ')[0].lower()[::-1]",
    "[x for x in l]", "lambda: 1", "a.b.c = 1", "1 +", "(1", "'abc", "1)", "{'a'}", "i ? 1 : 2", "s.upper", "range", "namespace",
    "-1|abs", "(-1)|abs", "- 1", "+1", "--1", "2 - -1", "true", "True", "none", "None", "false", "[true, none]", "1.0 + 1", "0.1 + 0.2", "1e16",
    "1e15 + 0.5", "5e-324", "1.7976931348623157e308", "100000.0 * 10", "3.0 * 2", "10 ** 15", "10.0 ** 15", "2 ** 0.5", "'a' ~ 1.0", "1 // 0.3",
    "b and i", "z or s", "i and z and f", "s and e or 'q'", "'x' * i", "l[1:] + l[:1]", "l * 2", "'a' 'b'|upper", "('a' ~ 'b')|upper",
    "s is string and s|length > 3", "d.items()", "d.keys()", "d.values()", "range(3)", "range(0, 10, 2)", "m[0]", "d.b", "['a\\nb', '\\u200b', '\\xad', 'é']",
    "min(l)", "dict", "cycler(1)", "joiner()", "i.__add__(1)", "''.__class__", "l|attr('x')", "'a' == \"a\"", "[1, 2] == (1, 2)", "1 in (1, 2)",
    "[[1]] == [[1.0]]", "'é' > 'z'", "'😀' > '\\uffff'", "none == false", "0 == false", "'' == none", "{} == []", "i != 7", "i <> 7", "1 in [1] in [[1]]",
]
STATEMENTS = [
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ x }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}|{% endfor %}", "{% for x in l %}{{ loop.previtem.y }}{% endfor %}",
    "{% for x in [] %}a{% else %}b{% endfor %}", "{% for x in l %}a{% else %}b{% endfor %}", "{% for x in missing %}a{% else %}b{% endfor %}",
    "{% for x in none_ %}a{% endfor %}", "{% for x in 5 %}a{% endfor %}", "{% for c in s %}{{ c }}.{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in d|items %}{{ k }}{% endfor %}", "{% for k, v in l %}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}", "{% for x in l if x > 9 %}a{% else %}none{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in l if ns.n < 1 %}{% set ns.n = ns.n + 1 %}{{ x }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in l if ns.n < 1 %}{% set ns.n = ns.n + 1 %}{{ x }}{{ loop.last }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in l if ns.n < 1 %}{{ loop.length }}{% set ns.n = ns.n + 1 %}{{ x }}{{ loop.revindex }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% break %}{% else %}else{% endfor %}", "{% for x in [1] %}{% continue %}{% else %}else{% endfor %}", "{% break %}",
    "{% for x in l %}{% for y in l %}{% if y == 2 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in l %}{% for y in ls %}{{ loop.index }}{% endfor %}{{ loop.index }},{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in l %}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
    "{% for x in nested recursive %}{% if x is iterable %}[{{ loop(x) }}]{% else %}{{ x }}{{ loop.depth }}{% endif %}{% endfor %}", "{% for x in l %}{{ loop(x) }}{% endfor %}",
    "{% for loop in l %}{% endfor %}", "{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% for x in m|map(attribute='role') %}{{ x }}{{ loop.length }}{% endfor %}",
    "{% for x in m|selectattr('n') %}{{ x.n }}{{ loop.last }}{% endfor %}", "{% for x in l|reverse %}{{ x }}{{ loop.revindex }}{% endfor %}", "{% for x in l %}{{ loop }}{% break %}{% endfor %}x",
    "{% set x = 1 %}{% for y in l %}{% set x = x + y %}{{ x }}{% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% for y in l %}{% if y == 1 %}{% set q = 5 %}{% endif %}{{ q }}.{% endfor %}{{ q }}", "{% set ns = namespace(a=1) %}{% for y in l %}{% set ns.a = ns.a + y %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=1) %}{{ ns }}{{ ns.b }}{{ ns['a'] }}", "{% set d.x = 1 %}", "{% set nope.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}", "{% set (a, b) = (1, 2) %}{{ a }}", "{% set a = 1, 2 %}{{ a }}", "{% set x %}a{{ i }}b{% endset %}{{ x }}{{ x|length }}",
    "{% set x | upper | trim %} a{{ i }}b {% endset %}[{{ x }}]", "{% set x %}{% set y = 2 %}{{ y }}{% endset %}{{ x }}{{ y }}", "{% set 1 = 2 %}", "{% set true = 2 %}", "{% set x = %}",
    "{% if i > 5 %}a{% elif i > 3 %}b{% else %}c{% endif %}", "{% if z %}a{% elif i > 3 %}b{% else %}c{% endif %}", "{% if z %}a{% elif z %}b{% else %}c{% endif %}", "{% if z %}a{% endif %}",
    "{% if missing %}a{% else %}b{% endif %}", "{% if missing.x %}a{% endif %}", "{% if l %}a{% endif %}{% if e %}b{% endif %}{% if d %}c{% endif %}", "{% if i %}", "{% endif %}", "{% else %}",
    "{% if i %}{% for x in l %}{% endif %}{% endfor %}", "{% macro f(a, b=2, c='x') %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(c=1, a=2) }}{{ f() }}{{ f(1, 2, 3) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}", "{% macro f(a) %}{{ a.x }}{% endmacro %}{{ f() }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}", "{% macro f(a) %}{{ kwargs }}{{ a }}{% endmacro %}{{ f(a=1, q=2) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro f() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ f() }}{% set x = 6 %}{{ f() }}",
    "{% set x = 1 %}{% macro f() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ f() }}{{ x }}", "{% macro f() %}{% endmacro %}{{ f }}{{ f.name }}", "{% macro f(a, b=a) %}{{ b }}{% endmacro %}{{ f(3) }}",
    "{% macro f(a=1, b) %}{% endmacro %}", "{% macro w(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call w('b') %}in{{ i }}{% endcall %}", "{% macro w() %}{{ caller(3) }}{% endmacro %}{% call(x) w() %}{{ x }}!{% endcall %}",
    "{% macro w() %}{{ caller() }}{% endmacro %}{{ w() }}", "{% macro w() %}x{% endmacro %}{% call w() %}y{% endcall %}", "{% macro f() %}{{ f.name }}{% endmacro %}{{ f()|upper }}", "{{ f() }}{% macro f() %}x{% endmacro %}",
    "{% macro f() %}  a  {% endmacro %}[{{ f()|trim }}]", "{% macro f(x) %}{% for y in x %}{{ loop.index }}{% endfor %}{% endmacro %}{% for z in l %}{{ f(l) }}{{ loop.index }}{% endfor %}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aa{% endfilter %}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% with a = i %}{% with a = a + 1, b = a %}{{ a }}{{ b }}{% endwith %}{% endwith %}", "{% print i, s %}", "{% raw %}{{ x }}{% y %}{% endraw %}", "a {%- raw -%} b {{ }} {%- endraw -%} c", "{% raw %}",
    "{# comment #}a{#- c -#} b", "{# unclosed", "{% unknown %}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}", "{% block a %}{% endblock %}", "{% do l %}", "{{", "{%", "{{ }}", "{% %}", "{{ i",
    "  {% if i %}  \n  a  \n  {% endif %}  \n  b", "{% if i %}\na\n{% endif %}\nb\n", "a\n  {%- if i -%}  \n b \n {%- endif -%} \n c", "a {%+ if i %} b {% endif +%}\nc", "{% if i +%}\na{% endif %}", "  {{ i }}\n  {{- i -}}\n  x",
    "  {#- c #}\n x\n  {# d #}\n y", "x {# d #}\n y", "{% for x in l %}\n  {{ x }}\n{% endfor %}\nend", "\n\n{% if i %}{% endif %}\n\n", "a\r\nb\rc\n", "a\n", "a\n\n", "\t{% if i %}\tx{% endif %}", "\u00a0{% if i %}x{% endif %}",
    "a {%- if i %} b{%- endif %} c", "{{ '{{' }}{{ '%}' }}", "{{ {'a': {'b': 1}}['a'] }}", "{{ {'a': {'b': 1}} }}", "{{ '}}' }}", "{{- i -}}", "{{-1}}", "{{ -1 }}", "{{+i}}", "{%- set x = 1 -%}\n{{ x }}", "{%set x=1%}{{x}}", "{%if i%}a{%endif%}",
    "{% generation %}a{{ i }}{% endgeneration %}b", "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x }}", "{% for x in l %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "{% for x in l %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% if true: %}a{% endif %}", "{% for x in l: %}{{ x }}{% endfor %}", "{% set it = l|map('string') %}{{ it|list }}{{ it|list }}", "{% set it = l|select %}{{ it|first }}{{ it|list }}", "{% set it = l|select %}{{ 1 in it }}{{ it|list }}",
    "{% set x = l|map('string') %}{% if x %}t{% endif %}", "{% for x in l|unique if x != 1 %}{{ x }}{% endfor %}", "{{ [1,2,3]|batch(2, 'x')|list }}", "{{ range(7)|batch(3)|list }}{{ range(7)|slice(3)|list }}{{ range(7)|slice(3, 'f')|list }}",
    "{% set a = {'x': 1} %}{% set b = dict(a, y=2) %}{{ a }}{{ b }}", "{% set a = [] %}{% set a = a + [1] %}{{ a }}", "{{ raise_exception('stop') if i == 7 else 'go' }}", "{{ s|replace('World', 'Moon') if 'World' in s }}", "{% set x = 'a' if false %}{{ x is defined }}",
    "{% for m_ in m %}{% if m_['role'] == 'user' and loop.index0 % 2 == 0 %}{{ m_['content'] | trim }}{% elif m_.role == 'assistant' %}{{ '<a>' + m_.content + '</a>' }}{% endif %}{% endfor %}",
    "{% for m_ in m if (m_['role'] == 'user') != (loop.index0 % 2 == 0) %}{% endfor %}", "{% for m_ in m %}{% if (m_['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{% endfor %}ok",
    "{% for x in l %}{% set loop_ = loop %}{% for y in l %}{{ loop_.index }}{{ loop.index }} {% endfor %}{% endfor %}", "{% for x in l %}{% if loop.last and loop.index > 1 %}{{ x }}{% endif %}{% endfor %}", "{% for x in m[1:] %}{{ x.role }}{% endfor %}{{ m[1:][0].role }}",
    "{% set m = m[1:] %}{{ m|length }}", "{%- set sys = m[0].content if m[0].role == 'system' else '' -%}[{{ sys }}]", "{% if m[0]['role'] == 'system' %}{% set loop_messages = m[1:] %}{% else %}{% set loop_messages = m %}{% endif %}{{ loop_messages|length }}",
    "{% set x %}{% endset %}{{ x is string }}{{ x == '' }}", "{% set x = namespace(l=[]) %}{% for y in l %}{% set x.l = x.l + [y * 2] %}{% endfor %}{{ x.l }}{{ x.l|sum }}", "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}",
    "{{ caller }}", "{{ kwargs }}", "{% call i() %}{% endcall %}", "{{ s.format }}", "{% set f = s.upper %}{{ f() }}", "{% set a = '<b>'|safe %}{{ a + '<i>' }}{{ a ~ '<i>' }}", "{{ ['<'|e, '>']|join }}", "{{ html|e|length }}", "{{ ''|safe is escaped }}",
]

# What jinja2 renders and is refused here: numbers beyond 64 bits and complex ones, attributes of numbers,
# objects printed, blocks; and what only jinja2's folding of constants lets pass.
REFUSED = {
    "{{ 1e20|int }}", "{{ 1e20|int(5) }}", "{{ n ** f }}", "{{ i.real.x }}", "{{ l|attr('x') }}", "{{ self }}", "{{ namespace }}",
    "{{ m|map(attribute='content') }}", "{% block a %}{% endblock %}", "{{ (1, 2, 3)['a':] }}",
    "{% for x in l %}{{ loop }}{% break %}{% endfor %}x",
}


def outcome(template):
    if template in REFUSED:
        return {"error": "refused"}
    try:
        compiled = _cached_compile_jinja_template(template)
        return {"out": compiled.render(**json.loads(json.dumps(VARS)))}
    except jinja2.exceptions.UndefinedError as e:
        return {"undefined": str(e)}
    except jinja2.exceptions.TemplateError as e:
        return {"raised": str(e)} if type(e) is jinja2.exceptions.TemplateError else {"error": type(e).__name__}
    except Exception as e:
        return {"error": type(e).__name__}


def main():
    pieces = [f"{{{{ {v}|{f} }}}}" for v in VALUES for f in FILTERS]
    pieces += [f"{{{{ {v} is {t} }}}}" for v in VALUES for t in TESTS]
    pieces += [f"{{{{ {a} {op} {b} }}}}" for a, b in itertools.product(PAIRS, PAIRS) for op in OPERATORS]
    pieces += [f"{{{{ {v}{x} }}}}" for v in ("s", "u", "l", "(1, 2, 3)", "d", "missing", "none_", "i") for x in SLICES]
    pieces += [f"{{{{ {v} }}}}" for v in VALUES + METHODS + EXPRESSIONS]
    pieces += STATEMENTS
    cases = []
    for piece in dict.fromkeys(pieces):
        result = outcome(piece)
        if " object at 0x" in result.get("out", "") or "<built-in" in result.get("out", "") or "<function" in result.get("out", ""):
            result = {"error": "refused"}  # an address
        cases.append([piece, result])
    json.dump({"versions": {"jinja2": jinja2.__version__, "transformers": transformers.__version__}, "vars": VARS, "cases": cases},
              sys.stdout, ensure_ascii=False, indent=0)
    print()


if __name__ == "__main__":
    main()
