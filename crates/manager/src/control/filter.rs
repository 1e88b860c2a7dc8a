//! Filters of lists: a row passes if a field has a given value. Each noun's file lists the fields of its rows.

use super::error::ControlError;

/// Selects the rows whose field `key` has this value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Name of a field in the row's JSON form.
    pub(crate) key: String,
    /// The value as text: `true`, `7`, `running`.
    pub(crate) value: String,
}

/// A field by which rows of type `R` can be filtered; its function returns `None` if a row has no value.
pub(crate) type Field<R> = (&'static str, fn(&R) -> Option<String>);

/// Keeps the rows that pass every filter. A row that does not pass is dropped before the next one is made.
///
/// # Errors
/// A filter names a field that is not in `fields`.
pub(crate) fn keep<R>(
    rows: impl IntoIterator<Item = R>,
    filters: &[Filter],
    fields: &[Field<R>],
) -> Result<Vec<R>, ControlError> {
    let known = |filter: &Filter| {
        let field = fields.iter().find(|(key, _)| *key == filter.key);
        field.map(|(_, value)| *value).ok_or_else(|| ControlError::UnknownFilter {
            filter: format!("{}={}", filter.key, filter.value),
            keys: fields.iter().map(|(key, _)| *key).collect(),
        })
    };
    let values = filters.iter().map(known).collect::<Result<Vec<_>, _>>()?;
    let passes =
        |row: &R| values.iter().zip(filters).all(|(value, filter)| value(row).is_some_and(|it| it == filter.value));
    Ok(rows.into_iter().filter(passes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field<u64>] =
        &[("number", |row| Some(row.to_string())), ("half", |row| (row % 2 == 0).then(|| (row / 2).to_string()))];

    fn filtered(filters: &[(&str, &str)]) -> Result<Vec<u64>, String> {
        let filter = |(key, value): &(&str, &str)| Filter { key: (*key).into(), value: (*value).into() };
        let filters: Vec<_> = filters.iter().map(filter).collect();
        keep(1..=6, &filters, FIELDS).map_err(|error| error.to_string())
    }

    #[test]
    fn a_row_passes_every_filter_or_is_left_out() {
        assert_eq!(filtered(&[]), Ok(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(filtered(&[("number", "4")]), Ok(vec![4]));
        assert_eq!(filtered(&[("number", "4"), ("half", "2")]), Ok(vec![4]));
        assert_eq!(filtered(&[("number", "4"), ("half", "1")]), Ok(vec![]));
        assert_eq!(filtered(&[("half", "")]), Ok(vec![]), "a row without a value equals nothing");
    }

    #[test]
    fn an_unknown_key_is_refused_with_those_that_are_known() {
        let refused = filtered(&[("number", "4"), ("colour", "red")]);
        assert_eq!(refused, Err("the filter `colour=red` has an unknown key: the keys are number, half".into()));
    }
}
